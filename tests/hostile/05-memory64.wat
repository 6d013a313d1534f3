;; A memory with 64-bit addresses and 2^32 pages.
(module (memory (export "memory") i64 4294967296) (func (export "_start")))
