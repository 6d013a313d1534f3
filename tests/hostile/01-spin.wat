;; A loop without an end.
(func $handle (param $m i32) (result i32)
  (loop $on (br $on)) (i32.const 0))
