"""The broker that shares a pool's line on Redis or Valkey (docs: the file lua/common.lua)."""
