"""One module a family of commands; each has `register(app)`."""
