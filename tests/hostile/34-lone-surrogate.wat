;;@ utf16
;; Texts in UTF-16, the payload half of a pair.
(func $handle (param $m i32) (result i32)
  (i32.store16 (i32.const 6000) (i32.const 0xd800))
  (call $event (i32.const 0) (i32.const 6000) (i32.const 1))
  (i32.store offset=4 (i32.const 4096) (i32.const 5))
  (call $ok (i32.const 1)))
