"""Flows: what may become of an order, as data. One table per order type; docs/flows.md is drawn from them."""
