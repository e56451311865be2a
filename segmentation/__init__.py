"""Where the subject is, how it is blurred away, and how the new one is put in. Imports no other room."""
