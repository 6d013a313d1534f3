;; One half of a cycle: everything goes on to the other half, and back.
(data (i32.const 1200) "stream:41-cycle-a")
(func $handle (param $m i32) (result i32)
  (call $event (i32.const 0) (i32.load offset=24 (local.get $m)) (i32.load offset=28 (local.get $m)))
  (i32.store (i32.const 4096) (i32.const 1200)) (i32.store offset=4 (i32.const 4096) (i32.const 17))
  (call $ok (i32.const 1)))
