"""What people have written elsewhere, as records: connectors and what several of them share."""
