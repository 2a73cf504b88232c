"""Methods side by side on one checkpoint: what is asked (asked), cells kept on disk (cells), settings chosen on validation
users (search), rows and the front (rows, front), put together in run.

The deciding choice is that a comparison is nothing but its cells: an erased model, or what was read off one, each under the
digest of everything it depends on. A killed run continues, and a larger comparison in the same directory makes what is new.
"""
