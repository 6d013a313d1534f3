;; 10 MB of last words, then a trap.
(import "wasi:cli/stderr@0.2.3" "get-stderr" (func $stderr (result i32)))
(import "wasi:io/streams@0.2.3" "[method]output-stream.blocking-write-and-flush" (func $write (param i32 i32 i32 i32)))
(func $handle (param $m i32) (result i32)
  (local $i i32) (local $to i32)
  (memory.fill (i32.const 65536) (i32.const 65) (i32.const 4096))
  (local.set $to (call $stderr))
  (loop $next
    (call $write (local.get $to) (i32.const 65536) (i32.const 4096) (i32.const 3000))
    (local.set $i (i32.add (local.get $i) (i32.const 1)))
    (br_if $next (i32.lt_u (local.get $i) (i32.const 2500))))
  unreachable)
