"""Programs that are copied beside launch files: read as text, never imported here."""
