"""Flights: the example with real data, real drift and labels that come hours later."""
