"""Commands of `snip`, one module a theme: parse, call the engine, print."""
