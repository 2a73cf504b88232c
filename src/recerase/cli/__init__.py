"""The command line: parse, call the API, render. One file a command; app.py puts them together."""
