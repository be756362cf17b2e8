"""Gibbs energy along a ladder of temperatures."""
