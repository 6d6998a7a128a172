"""Data of a user as arrays: folders of images and sounds, tables, arrays, text, public collections."""
