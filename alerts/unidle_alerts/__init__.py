"""Messages: one per incident when it opens, one when it resolves, none lost."""
