"""Forms of sparring: how faces are changed, at random or by a generator, and what a generator aims at."""
