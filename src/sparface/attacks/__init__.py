"""What an attack on a recognizer wants."""
