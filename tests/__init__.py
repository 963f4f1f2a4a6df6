"""Tests of the playground; one package, so that a file has one name however it is reached."""
