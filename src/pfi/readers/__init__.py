"""Reading foreign files piece by piece: JSON, exports, mails, and values as fields of a record."""
