;; Recurses to the edge of the stack, calling the host at every step: the host's own functions need room too.
(import "cofferdam:plugin/log@0.1.0" "write" (func $log (param i32 i32 i32)))
(func $deeper
  (call $log (i32.const 0) (i32.const 1060) (i32.const 9))
  (call $deeper))
(func $handle (param $m i32) (result i32)
  (call $deeper) (i32.const 0))
