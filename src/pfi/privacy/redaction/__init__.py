"""The privacy filter: identifiers become placeholders on the way out."""
