from fer_lightning.app import main

if __name__ == "__main__":
    main()
