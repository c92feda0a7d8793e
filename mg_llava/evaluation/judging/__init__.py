"""Judges that grade replies: what they are asked, the endpoint, the run."""
