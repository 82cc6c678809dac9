"""What protects texts and files: redaction, the ledger, ciphers and signatures."""
