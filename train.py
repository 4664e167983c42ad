from fer_lightning.app import main

main()
