;; 1,001 outputs of one byte each: one more than is allowed, and few enough for everything else.
(data (i32.const 1048) "1")
(func $handle (param $m i32) (result i32)
  (local $i i32)
  (loop $next
    (call $event (local.get $i) (i32.const 1048) (i32.const 1))
    (local.set $i (i32.add (local.get $i) (i32.const 1)))
    (br_if $next (i32.lt_u (local.get $i) (i32.const 1001))))
  (call $ok (i32.const 1001)))
