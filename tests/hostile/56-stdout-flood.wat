;; A program that writes without an end.
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 65536)) (i32.store offset=4 (i32.const 0) (i32.const 60000))
    (memory.fill (i32.const 65536) (i32.const 65) (i32.const 60000))
    (loop $on (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16))) (br $on))))
