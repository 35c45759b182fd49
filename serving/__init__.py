"""What every daemon shares: configuration, gRPC servers, authorization table, database engine, logs."""
