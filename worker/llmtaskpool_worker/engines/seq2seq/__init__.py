"""Models that read a text or sound once and write over it: translation, summaries, speech."""
