"""Name the people on photos with a gallery of enrolled people.

`enrol` makes a gallery and `identify` uses it; `file` is its format, `threshold` decides which faces are of
strangers, and `known` remembers where the recognizers of this user's galleries are.
"""
