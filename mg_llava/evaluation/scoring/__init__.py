"""Rules of scoring that several families share: joining, reading files, comparing answers."""
