;; Emits to a stream that its manifest does not name.
(data (i32.const 1200) "stream:alerts")
(func $handle (param $m i32) (result i32)
  (call $event (i32.const 0) (i32.const 1040) (i32.const 7))
  (i32.store (i32.const 4096) (i32.const 1200)) (i32.store offset=4 (i32.const 4096) (i32.const 13))
  (call $ok (i32.const 1)))
