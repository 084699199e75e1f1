"""HTTP front: clients' connections, admission, paths, load, WebSockets."""
