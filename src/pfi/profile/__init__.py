"""One user's home: opened, asked, taught, erased, archived, exported, planned."""
