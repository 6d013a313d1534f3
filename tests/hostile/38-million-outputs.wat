;; A million outputs of one byte each.
(data (i32.const 1048) "1")
(func $handle (param $m i32) (result i32)
  (local $i i32) (local $at i32)
  (drop (memory.grow (i32.const 620)))
  (loop $next
    (local.set $at (i32.add (i32.const 65536) (i32.mul (local.get $i) (i32.const 40))))
    (i32.store (local.get $at) (i32.const 1024)) (i32.store offset=4 (local.get $at) (i32.const 11))
    (i32.store offset=8 (local.get $at) (i32.const 1048)) (i32.store offset=12 (local.get $at) (i32.const 1))
    (local.set $i (i32.add (local.get $i) (i32.const 1)))
    (br_if $next (i32.lt_u (local.get $i) (i32.const 1000000))))
  (drop (call $ok (i32.const 1000000)))
  (i32.store offset=8 (i32.const 2048) (i32.const 65536))
  (i32.const 2048))
