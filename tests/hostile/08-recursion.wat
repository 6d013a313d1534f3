;; Recurses until the stack ends.
(func $deeper (param i64) (result i64)
  (i64.add (i64.const 1) (call $deeper (local.get 0))))
(func $handle (param $m i32) (result i32)
  (drop (call $deeper (i64.const 1))) (i32.const 0))
