"""Side-by-side runs of capax and its peers; each writes JSON and a picture."""
