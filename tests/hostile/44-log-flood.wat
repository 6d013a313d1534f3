;; 50,000 lines for the log.
(import "cofferdam:plugin/log@0.1.0" "write" (func $log (param i32 i32 i32)))
(func $handle (param $m i32) (result i32)
  (local $i i32)
  (loop $next
    (call $log (i32.const 1) (i32.const 1060) (i32.const 9))
    (local.set $i (i32.add (local.get $i) (i32.const 1)))
    (br_if $next (i32.lt_u (local.get $i) (i32.const 50000))))
  (call $ok (i32.const 0)))
