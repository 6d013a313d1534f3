;; A table of 4,000,000,000 elements from the start.
(table 4000000000 funcref)
(func $handle (param $m i32) (result i32)
  (call $ok (i32.const 0)))
