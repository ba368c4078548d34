"""What turns foreign layouts into stores and back; installed as dlas_store.converters."""
