"""Finding layers, counting cost, tracing channel groups, surgery."""
