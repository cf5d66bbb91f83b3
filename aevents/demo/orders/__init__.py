"""The service that sells: sync views, `emit(...)` inside `atomic()`."""
