"""`swav plan`: settings for an image folder, each with its reason, and what they will cost."""
