"""Editors: hypernetworks that turn the gradients of an edit into an update, trained per model."""
