"""What a compiled step is made of, for people and for programs: JSON, text and HTML."""
