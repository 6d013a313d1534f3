;; Sleeps for an hour.
(import "wasi:clocks/monotonic-clock@0.2.3" "subscribe-duration" (func $after (param i64) (result i32)))
(import "wasi:io/poll@0.2.3" "[method]pollable.block" (func $block (param i32)))
(func $handle (param $m i32) (result i32)
  (call $block (call $after (i64.const 3600000000000))) (call $ok (i32.const 0)))
