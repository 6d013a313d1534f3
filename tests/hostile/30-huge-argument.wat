;; Hands the host the same 30 MB of text to log, over and over.
(import "cofferdam:plugin/log@0.1.0" "write" (func $log (param i32 i32 i32)))
(func $handle (param $m i32) (result i32)
  (drop (memory.grow (i32.const 480)))
  (memory.fill (i32.const 65536) (i32.const 65) (i32.const 30000000))
  (loop $on (call $log (i32.const 1) (i32.const 65536) (i32.const 30000000)) (br $on))
  (i32.const 0))
