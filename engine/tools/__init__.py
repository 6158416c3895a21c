"""What measures, compares, tunes and explains the engine; nothing here is needed to generate."""
