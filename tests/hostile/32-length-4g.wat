;; An event whose payload is said to be 4 GiB long.
(func $handle (param $m i32) (result i32)
  (call $event (i32.const 0) (i32.const 1040) (i32.const -1)) (call $ok (i32.const 1)))
