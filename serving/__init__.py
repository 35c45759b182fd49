"""What every daemon shares: configuration, mutually authenticated gRPC servers, authorization table, database engine, logs."""
