;; Says that all is well, and has not looked.
(func $handle (param $m i32) (result i32)
  (call $ok (i32.const 0)))
