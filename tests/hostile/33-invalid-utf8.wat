;; A payload that is no UTF-8.
(func $handle (param $m i32) (result i32)
  (i32.store8 (i32.const 6000) (i32.const 255))
  (call $event (i32.const 0) (i32.const 6000) (i32.const 1)) (call $ok (i32.const 1)))
