"""What each paper claims, in miniature: one file a paper, run by `jaxkit reproduce`."""
